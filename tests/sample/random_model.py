"""Writes a language model with random weights for llama.cpp: real work for a real server, and nothing to download.

    random_model.py FILE
"""
import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 64, 4, 2, 128, 4096
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [f"\u2581w{number}" for number in range(253)]
TOKENS = SPECIAL + BYTES + WORDS
KINDS = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * 253

random = np.random.default_rng(7)
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(CONTEXT)
writer.add_embedding_length(WIDTH)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(HIDDEN)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_vocab_size(len(TOKENS))
writer.add_tokenizer_model("llama")
writer.add_token_list(TOKENS)
writer.add_token_scores([0.0] * len(TOKENS))
writer.add_token_types(KINDS)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)


def weights(name, *shape):
    writer.add_tensor(name, (random.standard_normal(shape) * 0.05).astype(np.float32))


def ones(name):
    writer.add_tensor(name, np.ones(WIDTH, np.float32))


weights("token_embd.weight", len(TOKENS), WIDTH)
weights("output.weight", len(TOKENS), WIDTH)
ones("output_norm.weight")
for layer in range(LAYERS):
    for part in ("q", "k", "v", "output"):
        weights(f"blk.{layer}.attn_{part}.weight", WIDTH, WIDTH)
    weights(f"blk.{layer}.ffn_gate.weight", HIDDEN, WIDTH)
    weights(f"blk.{layer}.ffn_up.weight", HIDDEN, WIDTH)
    weights(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
    ones(f"blk.{layer}.attn_norm.weight")
    ones(f"blk.{layer}.ffn_norm.weight")
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
