"""Multi-head latent attention against transformers' DeepSeek-V3: the same weights, whole, packed and from memory."""

from __future__ import annotations

import pytest
import torch
from tests.support.attention_layers import in_pieces, inputs, layer, whole

PLAIN = {"mla.kv_lora": 24, "mla.nope_dim": 6, "mla.rope_dim": 4, "mla.value_dim": 10}
YARN = {
    "mla.yarn_factor": 40.0, "mla.yarn_original": 64, "mla.yarn_beta_fast": 2.0, "mla.yarn_beta_slow": 0.5,
    "mla.yarn_mscale": 1.0, "mla.yarn_mscale_all_dim": 0.7,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "options", [PLAIN, PLAIN | {"mla.q_lora": 20}, PLAIN | YARN], ids=["plain", "query latent", "yarn"]
)
def test_outputs_equal_those_of_transformers(options: dict) -> None:
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    made = layer("mla", norm_eps=1e-3, options=options)
    rope: dict = {"rope_type": "default", "rope_theta": 10_000.0}
    if "mla.yarn_factor" in options:
        rope |= {"rope_type": "yarn", "original_max_position_embeddings": 64}
        rope |= {key[9:]: value for key, value in YARN.items() if key != "mla.yarn_original"}
    settings = DeepseekV3Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=6, num_key_value_heads=6, kv_lora_rank=24,
        q_lora_rank=options.get("mla.q_lora"), qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=10,
        rms_norm_eps=1e-3, rope_parameters=rope, max_position_embeddings=2560,
    )  # fmt: skip
    theirs = DeepseekV3Attention(settings, 0)
    names = {
        "q_proj": "query", "q_a_proj": "query_down", "q_a_layernorm": "query_norm", "q_b_proj": "query_up",
        "kv_a_proj_with_mqa": "key_value_down", "kv_a_layernorm": "key_value_norm", "kv_b_proj": "key_value_up",
        "o_proj": "output",
    }  # fmt: skip
    state = made.state_dict()
    theirs.load_state_dict({f"{name}.weight": state[f"{own}.weight"] for name, own in names.items()
                            if f"{own}.weight" in state})  # fmt: skip
    x_BSD = inputs(2, 70)

    def expected(x_BSD: torch.Tensor) -> torch.Tensor:
        S = x_BSD.shape[1]
        tables = DeepseekV3RotaryEmbedding(settings)(x_BSD, torch.arange(S)[None])
        mask = torch.full((S, S), float("-inf")).triu(1)[None, None]
        with torch.no_grad():
            return theirs(x_BSD, position_embeddings=tables, attention_mask=mask)[0]

    right = expected(x_BSD)
    torch.testing.assert_close(whole(made, x_BSD), right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(in_pieces(made, x_BSD, [40, *[1] * 10, 20]), right, rtol=1e-5, atol=1e-5)
    packed = whole(made, x_BSD, [(30,), (30,)])
    torch.testing.assert_close(packed[:, 30:], expected(x_BSD[:, 30:]), rtol=1e-5, atol=1e-5)
    assert (packed[:, 30:] - right[:, 30:]).abs().max() > 1e-2
