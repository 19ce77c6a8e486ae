"""Names of several model families → group, layer, module."""

import pytest

from distill.analysis.naming import GROUPS, Place, place

CASES = {
    # llama, qwen, gemma, mistral
    "model.embed_tokens.weight": ("embedding", None, "embed_tokens"),
    "model.layers.3.self_attn.q_proj.weight": ("attention", 3, "q_proj"),
    "model.layers.3.self_attn.k_proj.bias": ("attention", 3, "k_proj"),
    "model.layers.27.self_attn.o_proj.weight": ("attention", 27, "o_proj"),
    "model.layers.0.self_attn.q_norm.weight": ("norm", 0, "q_norm"),
    "model.layers.10.mlp.gate_proj.weight": ("mlp", 10, "gate_proj"),
    "model.layers.10.mlp.down_proj.weight": ("mlp", 10, "down_proj"),
    "model.layers.1.post_attention_layernorm.weight": ("norm", 1, "post_attention_layernorm"),
    "model.layers.1.pre_feedforward_layernorm.weight": ("norm", 1, "pre_feedforward_layernorm"),
    "model.norm.weight": ("norm", None, "norm"),
    "lm_head.weight": ("lm_head", None, "lm_head"),
    # gpt2
    "transformer.wte.weight": ("embedding", None, "wte"),
    "transformer.wpe.weight": ("embedding", None, "wpe"),
    "transformer.h.2.attn.c_attn.weight": ("attention", 2, "c_attn"),
    "transformer.h.2.attn.c_proj.weight": ("attention", 2, "attn.c_proj"),
    "h.2.mlp.c_proj.bias": ("mlp", 2, "mlp.c_proj"),
    "transformer.h.2.mlp.c_fc.weight": ("mlp", 2, "c_fc"),
    "transformer.h.2.ln_1.bias": ("norm", 2, "ln_1"),
    "transformer.ln_f.weight": ("norm", None, "ln_f"),
    # opt
    "model.decoder.embed_positions.weight": ("embedding", None, "embed_positions"),
    "model.decoder.layers.5.self_attn.out_proj.weight": ("attention", 5, "out_proj"),
    "model.decoder.layers.5.self_attn_layer_norm.weight": ("norm", 5, "self_attn_layer_norm"),
    "model.decoder.layers.5.fc1.weight": ("mlp", 5, "fc1"),
    "model.decoder.layers.5.fc2.bias": ("mlp", 5, "fc2"),
    # phi, phi3
    "model.layers.4.self_attn.dense.weight": ("attention", 4, "dense"),
    "model.layers.4.mlp.fc1.weight": ("mlp", 4, "fc1"),
    "model.layers.4.self_attn.qkv_proj.weight": ("attention", 4, "qkv_proj"),
    "model.layers.4.mlp.gate_up_proj.weight": ("mlp", 4, "gate_up_proj"),
    # mixtral and other experts, on disk and fused in memory
    "model.layers.6.block_sparse_moe.experts.7.w2.weight": ("mlp", 6, "w2"),
    "model.layers.6.block_sparse_moe.gate.weight": ("other", 6, "gate"),
    "model.layers.6.mlp.experts.gate_up_proj": ("mlp", 6, "gate_up_proj"),
    "model.layers.6.mlp.shared_expert_gate.weight": ("other", 6, "shared_expert_gate"),
    "model.layers.6.mlp.router.weight": ("other", 6, "router"),
    # neox, falcon, mpt
    "gpt_neox.embed_in.weight": ("embedding", None, "embed_in"),
    "gpt_neox.layers.1.attention.query_key_value.weight": ("attention", 1, "query_key_value"),
    "gpt_neox.layers.1.attention.dense.weight": ("attention", 1, "dense"),
    "gpt_neox.layers.1.mlp.dense_4h_to_h.weight": ("mlp", 1, "dense_4h_to_h"),
    "embed_out.weight": ("lm_head", None, "embed_out"),
    "transformer.h.1.self_attention.dense.weight": ("attention", 1, "dense"),
    "transformer.word_embeddings.weight": ("embedding", None, "word_embeddings"),
    "transformer.word_embeddings_layernorm.weight": ("norm", None, "word_embeddings_layernorm"),
    "transformer.blocks.1.ffn.up_proj.weight": ("mlp", 1, "up_proj"),
    # vision transformers: vit, swin, deit
    "vit.embeddings.cls_token": ("embedding", None, "cls_token"),
    "vit.embeddings.position_embeddings": ("embedding", None, "position_embeddings"),
    "vit.embeddings.patch_embeddings.projection.weight": ("embedding", None, "projection"),
    "vit.layers.1.attention.o_proj.bias": ("attention", 1, "o_proj"),
    "vit.layers.1.mlp.fc2.weight": ("mlp", 1, "fc2"),
    "vit.layers.1.layernorm_before.weight": ("norm", 1, "layernorm_before"),
    "swin.encoder.layers.1.blocks.0.attention.q_proj.weight": ("attention", 1, "q_proj"),
    "swin.encoder.layers.0.downsample.reduction.weight": ("convolution", 0, "reduction"),
    "swinv2.encoder.layers.1.blocks.0.output.dense.weight": ("mlp", 1, "dense"),
    "cvt.encoder.stages.2.layers.0.intermediate.dense.weight": ("mlp", 2, "dense"),
    "textnet.encoder.stages.3.stage.1.vertical_conv.weight": ("convolution", 3, "vertical_conv"),
    "regnet.encoder.stages.1.layers.0.layer.2.attention.0.weight": ("convolution", 1, "squeeze_excite.0"),
    "levit.encoder.stages.0.layers.0.module.queries_keys_values.linear.weight": ("attention", 0, "linear"),
    "fc.weight": ("classifier", None, "fc"),
    # the same words in language models, where they have no group
    "bert.encoder.layer.0.intermediate.dense.weight": ("other", 0, "dense"),
    "head.weight": ("other", None, "head"),
    "vision_model.encoder.layers.0.self_attn.q_proj.weight": ("other", None, "q_proj"),
    "distillation_classifier.weight": ("classifier", None, "distillation_classifier"),
    "classifier.bias": ("classifier", None, "classifier"),
    # convolutions: resnet, convnext, mobilenet
    "resnet.embedder.embedder.convolution.weight": ("embedding", None, "embedder.convolution"),
    "resnet.embedder.embedder.normalization.bias": ("norm", None, "embedder.normalization"),
    "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight": ("convolution", 1, "0.convolution"),
    "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight": ("convolution", 1, "shortcut.convolution"),
    "resnet.encoder.stages.3.layers.0.layer.1.normalization.weight": ("norm", 3, "1.normalization"),
    "classifier.1.weight": ("classifier", None, "classifier.1"),
    "convnext.embeddings.patch_embeddings.weight": ("embedding", None, "patch_embeddings"),
    "convnext.encoder.stages.2.layers.5.dwconv.weight": ("convolution", 2, "dwconv"),
    "convnext.encoder.stages.2.layers.5.pwconv1.weight": ("convolution", 2, "pwconv1"),
    "convnext.encoder.stages.1.downsampling_layer.0.weight": ("norm", 1, "downsampling_layer.0"),
    "convnext.encoder.stages.1.downsampling_layer.1.weight": ("convolution", 1, "downsampling_layer.1"),
    "mobilenet_v2.conv_stem.first_conv.convolution.weight": ("embedding", None, "first_conv.convolution"),
    "mobilenet_v2.layer.4.expand_1x1.convolution.weight": ("convolution", 4, "expand_1x1.convolution"),
    "mobilenet_v2.conv_1x1.convolution.weight": ("convolution", None, "conv_1x1.convolution"),
    "backbone.layers.1.mixer.conv1d.weight": ("other", 1, "conv1d"),
    # state spaces; wrapped language models; vision towers
    "backbone.layers.1.mixer.in_proj.weight": ("other", 1, "in_proj"),
    "model.language_model.layers.9.self_attn.v_proj.weight": ("attention", 9, "v_proj"),
    "base_model.model.model.layers.9.self_attn.v_proj.weight": ("attention", 9, "v_proj"),
    "model.visual.blocks.9.attn.qkv.weight": ("other", None, "qkv"),
}


@pytest.mark.parametrize(("name", "expected"), CASES.items())
def test_place(name: str, expected: tuple[str, int | None, str]) -> None:
    assert place(name) == Place(*expected)
    assert place(name).group in GROUPS


def test_modules_of_a_layer_do_not_collide() -> None:
    names = ["transformer.h.0.attn.c_proj.weight", "transformer.h.0.mlp.c_proj.weight"]
    assert len({place(name).module for name in names}) == 2
