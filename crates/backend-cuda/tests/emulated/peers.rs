//! Sums among devices that read each other's memory, each of which works through a queue of its own.

use crate::common::{Noise, library, upload};
use backend::{Backend, Buffer, Peers};
use backend_cuda::Cuda;
use cuda_emulator::{Check, Emulated, Order, Queued};
use std::sync::Arc;

/// So many devices, none as fast as another.
fn devices(name: &str, check: Check, count: u64) -> Option<Vec<Cuda>> {
    let library = library(name, check)?;
    let device = |pace| Queued::new(Emulated::new(library, Order::Forward, true), pace);
    Some((0..count).map(|pace| Cuda::new(Arc::new(device(pace)), false)).collect())
}

/// The sums of what the devices have after some work of different lengths, and what they must be.
fn sums(all: &[Cuda], rows: usize, width: usize) {
    let backends: Vec<&dyn Backend> = all.iter().map(|cuda| cuda as &dyn Backend).collect();
    let values: Vec<Vec<f32>> =
        (0..all.len()).map(|i| Noise::new(i as u64).values(rows * width)).collect();
    for round in 0..4 {
        let part = |(i, cuda): (usize, &Cuda)| -> Buffer {
            let mut part = upload(cuda, width, &values[i]);
            // The one that is last is another in each round.
            for _ in 0..(i + round) % all.len() * 3 {
                let zeros = cuda.zeros(rows, width).unwrap();
                cuda.add(&mut part, &zeros).unwrap();
            }
            part
        };
        let parts: Vec<Buffer> = all.iter().enumerate().map(part).collect();
        let sums = backends[0].peers().unwrap().sum_among(&backends, &parts).unwrap().unwrap();
        drop(parts);
        // What is allocated next may lie where the parts lay.
        let others: Vec<Buffer> =
            all.iter().map(|cuda| upload(cuda, width, &vec![7.0; rows * width])).collect();
        let mut want = values[0].clone();
        for more in &values[1..] {
            want.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
        for (cuda, sum) in all.iter().zip(sums) {
            assert_eq!(cuda.download(sum).unwrap(), want);
        }
        drop(others);
    }
}

#[test]
fn sums_are_those_of_the_devices_in_order() {
    for count in [2, 3, 4] {
        let name = "sums_are_those_of_the_devices_in_order";
        let Some(all) = devices(name, Check::Barriers, count) else { return };
        for (rows, width) in [(1, 1), (3, 7), (2, 1000), (300, 1001)] {
            sums(&all, rows, width);
        }
    }
}

#[test]
fn sums_touch_only_what_is_summed() {
    let Some(all) = devices("sums_touch_only_what_is_summed", Check::Memory, 3) else { return };
    sums(&all, 3, 7);
    sums(&all, 1, 4100);
}

#[test]
fn what_has_not_one_shape_is_not_summed() {
    let name = "what_has_not_one_shape_is_not_summed";
    let Some(all) = devices(name, Check::Barriers, 2) else { return };
    let parts = [upload(&all[0], 2, &[1.0; 4]), upload(&all[1], 4, &[1.0; 4])];
    assert!(all[0].sum_among(&[&all[0], &all[1]], &parts).is_err());
    // The CPU reads no GPU's memory.
    let mixed: [&dyn Backend; 2] = [&all[0], &backend::Reference];
    let parts = [upload(&all[0], 2, &[1.0; 4]), upload(&backend::Reference, 2, &[1.0; 4])];
    assert!(all[0].sum_among(&mixed, &parts).unwrap().is_none());
}
