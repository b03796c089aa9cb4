"""Folders as GGUF files of F32 by llama.cpp's own converter, without their tokenizers:

gguf_convert.py SOURCE OUT FOLDER...

SOURCE is a clone of llama.cpp; OUT/NAME.gguf is made of each FOLDER of that name. What the converter does not
convert is said."""

import pathlib
import sys


def main(source, out, folders):
    sys.path[:0] = [source, source + "/gguf-py"]
    import conversion
    import gguf
    import torch

    out = pathlib.Path(out)
    out.mkdir(parents=True)
    for folder in map(pathlib.Path, folders):
        config = conversion.ModelBase.load_hparams(folder, False)
        kind = conversion.get_model_class(config["architectures"][0])

        def no_vocab(self, size=config["vocab_size"]):
            self.gguf_writer.add_tokenizer_model("no_vocab")
            # Only some architectures say it themselves.
            if not any(f"{self.gguf_writer.arch}.vocab_size" in keys for keys in self.gguf_writer.kv_data):
                self.gguf_writer.add_vocab_size(size)

        kind.set_vocab = no_vocab
        try:
            with torch.inference_mode():
                kind(folder, gguf.LlamaFileType.ALL_F32, out / f"{folder.name}.gguf").write()
        except ValueError as error:
            print(f"{folder.name}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
