"""A small package under the reference's names, with our networks inside: what the benchmark needs of a checkout.

`lay_out(folder)` writes it. Nothing of it is the reference's code; that both sides agree says only that the suite
passes weights and inputs from one to the other.
"""

from pathlib import Path

import torch
from torch import nn

from tesserae.interop import compvis
from tesserae.models.discriminator import PatchDiscriminator
from tesserae.models.quantizers import NearestQuantizer
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN

PLACES = {"models/vqgan.py": "VQModel", "models/cond_transformer.py": "Net2NetTransformer",
          "modules/transformer/mingpt.py": "GPT, sample_with_past, top_k_logits",
          "modules/vqvae/quantize.py": "VectorQuantizer2", "modules/losses/lpips.py": "nn"}


def lay_out(folder):
    """A folder that can be given as --reference."""
    for place, names in PLACES.items():
        path = folder / "taming" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from taming.standin import {names}\n")
    (folder / "taming/standin.py").write_text(Path(__file__).read_text())
    return folder


class Renamed(nn.Module):
    """A network of ours whose weights have the reference's names."""

    def state_dict(self, *_, destination=None, prefix="", **__):
        state = {} if destination is None else destination
        for key, value in self.inner.state_dict().items():
            names = self.names(key)
            for name, part in zip(names, value.chunk(max(1, len(names)))):
                state[prefix + name] = part
        if hasattr(self, "loss"):
            self.loss.state_dict(destination=state, prefix=f"{prefix}loss.")
        return state


class VQModel(Renamed):
    def __init__(self, ddconfig, lossconfig, n_embed, embed_dim):
        super().__init__()
        params = {"ddconfig": ddconfig, "n_embed": n_embed, "embed_dim": embed_dim}
        self.inner = VQGAN(compvis.vqgan_config(params))
        if "disc_ndf" in lossconfig["params"]:
            from tesserae.models.perceptual import LPIPS

            self.loss = nn.Module()
            self.loss.perceptual_loss = LPIPS.load("vgg")
            self.loss.discriminator = Discriminator(lossconfig["params"]["disc_ndf"])

    def names(self, key):
        if key == "quantizer.codebook":
            return ["quantize.embedding.weight"]
        return compvis._vqgan_names(key, len(self.inner.config.channel_mult))

    def encode(self, x):
        found = self.inner.quantizer(self.inner.latents(x))
        return found.z_q, found.codebook_loss, (None, None, found.indices.flatten())

    def decode(self, z_q):
        return self.inner.decode_latents(z_q)

    def training_step(self, batch, _, turn):
        x = batch["image"].permute(0, 3, 1, 2)
        z_q, loss, _ = self.encode(x)
        return (x - self.decode(z_q)).abs().mean() + loss if turn == 0 else self.loss.discriminator(x).mean()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), self.learning_rate)
                for part in (self.inner, self.loss.discriminator)], []

    global_step = 0


class Discriminator(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.main = PatchDiscriminator(3, width).net

    def forward(self, x):
        return self.main(x)


class GPT(Renamed):
    def __init__(self, vocab_size, block_size, **sizes):
        super().__init__()
        self.inner = LatentTransformer(TransformerConfig(
            codebook_size=vocab_size, prefix_vocab=vocab_size, max_tokens=block_size, **sizes))
        with torch.no_grad():  # one table for both
            self.inner.prefix_embedding.weight.copy_(self.inner.token_embedding.weight)

    def names(self, key):
        return [] if key.startswith("prefix") else compvis._transformer_names(key)

    def state_dict(self, *given, prefix="", **named):
        state = super().state_dict(*given, prefix=prefix, **named)
        state[f"{prefix}pos_emb"] = state[f"{prefix}pos_emb"][None]
        return state

    def forward(self, tokens):
        following = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)  # of the last nothing is looked at
        return self.inner(tokens[:, :1], following), None

    def forward_with_past(self, tokens, past=None, past_length=None):
        assert past is None or sum(part.shape[1] for part in past) == past_length
        logits, _ = self(torch.cat([*(past or []), tokens], dim=1))
        return logits, None, tokens


def sample_with_past(tokens, network, steps, sample_logits, top_k, top_p):
    first = tokens.shape[1]
    for _ in range(steps):
        logits = network(tokens)[0][:, -1]
        tokens = torch.cat([tokens, top_k_logits(logits, top_k).argmax(-1, keepdim=True)], dim=1)
    return tokens[:, first:]


def top_k_logits(logits, k):
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)


class Net2NetTransformer(nn.Module):
    def __init__(self, transformer_config, first_stage_config, **_):
        super().__init__()
        self.first_stage_model = VQModel(**first_stage_config["params"])
        self.transformer = GPT(**transformer_config["params"])

    def forward(self, x, c):
        with torch.no_grad():
            codes = self.first_stage_model.encode(x)[2][2].view(len(x), -1)
        return self.transformer(torch.cat([c[:, None], codes[:, :-1]], dim=1))[0], codes

    def training_step(self, batch, _):
        logits, codes = self(batch["image"].permute(0, 3, 1, 2), batch["class_label"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.transformer.parameters(), self.learning_rate)


class VectorQuantizer2(nn.Module):
    def __init__(self, size, width, beta):
        super().__init__()
        self.inner = NearestQuantizer(size, width)
        self.embedding = nn.Module()
        self.embedding.weight = self.inner.codebook

    def forward(self, z):
        found = self.inner(z)
        return found.z_q, None, (None, None, found.indices.flatten())
