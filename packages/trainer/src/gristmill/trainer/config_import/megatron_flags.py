"""Flags of Megatron-LM and Megatron-DeepSpeed that nothing here is set from: by reason, with wildcards."""

from __future__ import annotations

# Whatever the flag says, a run here learns the same, or there is nothing to set.
MEANINGLESS = {
    "how the job is started; here torchrun, or trainer run --launcher": (
        "node-rank master-addr master-port rdzv-* local-rank hostfile include exclude launcher num-gpus-per-node "
        "distributed-backend distributed-timeout-* lazy-mpu-init max-restarts monitor-interval tee log-dir module "
        "force-multi no-local-rank role standalone no-python run-path redirects save-pid"
    ),
    "a faster kernel for the same arithmetic; which one runs is chosen here by format and device": (
        "use-flash-attn* attention-backend no-*-fusion cross-entropy-* transformer-impl use-mcore-models "
        "use-legacy-models moe-grouped-gemm moe-use-legacy-grouped-gemm moe-permute-fusion moe-router-fusion "
        "enable-cuda-graph cuda-graph-* external-cuda-graph te-rng-tracker use-te-activation-func use-fused-* "
        "no-persist-layer-norm fused-* moe-router-padding-for-fp8 moe-router-padding-for-quantization "
        "disable-bf16-reduced-precision-matmul use-tutel moe-mlp-glu-interleave-size spec flash-decode bias-*-fusion"
    ),
    "how ranks exchange what they compute; nothing here to tune": (
        "overlap-* tp-comm-* disable-tp-comm-* no-overlap-* no-align-* ddp-* moe-token-dispatcher-type "
        "moe-enable-deepep moe-deepep-num-sms moe-flex-dispatcher-backend moe-hybridep-num-sms delay-wgrad-compute "
        "moe-shared-expert-overlap use-nccl-ub nccl-* high-priority-stream-groups disable-symmetric-registration "
        "use-sharp sharp-enabled-group grad-reduce-in-bf16 accumulate-allreduce-grads-in-fp32 "
        "no-gradient-accumulation-fusion no-gradient-reduce-div-fusion fsdp-double-buffer "
        "suggested-communication-unit-size defer-embedding-wgrad-compute wgrad-deferral-limit use-tp-pp-dp-mapping "
        "disable-gloo-process-groups no-async-tensor-model-parallel-allreduce outer-dp-sharding-strategy "
        "num-distributed-optimizer-instances torch-fsdp2-no-reshard-after-forward init-model-with-meta-device "
        "manual-gc* no-manual-gc-eval empty-unused-memory-level train-sync-interval moe-extended-tp "
        "create-moe-param-group synchronize-each-layer no-pipeline-parallel ds-sequence-parallel-* "
        "ds-pipeline-enabled contigious-checkpointing checkpoint-in-cpu partition-activations "
        "split-transformers profile-backward deepspeed-mpi no-clone-scatter-output-in-embedding"
    ),
    "what is logged is every step's event here (docs/training.md)": (
        "log-* timing-log-* no-one-logger one-logger-* app-tag-* enable-one-logger straggler-* disable-straggler-* "
        "profile* use-pytorch-profiler record-memory-history memory-snapshot-path moe-per-layer-logging "
        "tensorboard-log-interval tensorboard-queue-size config-logger-dir logging-level wandb-save-dir wandb-entity "
        "run-workload-inspector-server no-log-* result-rejected-tracker-filename enable-experimental"
    ),
    "checkpoints here are whole, asynchronous and exact (docs/training.md)": (
        "ckpt-* no-ckpt-* dist-ckpt-* use-dist-ckpt* async-save auto-detect-ckpt-format non-persistent-* "
        "no-save-* no-load-* use-checkpoint-* use-mp-args-from-checkpoint-args override-opt-param-scheduler "
        "no-initialization exit-on-missing-checkpoint use-persistent-ckpt-worker replication* save-retain-interval "
        "no-strict-fsdp-dtensor-load load-main-params-from-ckpt distrib-optim-* universal-checkpoint "
        "no-use-tokenizer-model-from-checkpoint-args finetune"
    ),
    "bf16 needs no scale of the loss": "loss-scale* initial-loss-scale min-loss-scale hysteresis",
    "stops, alarms and resuming are trainer run's own (docs/training.md)": (
        "exit-* enable-ft-package calc-ft-timeouts inprocess-* adlr-autoresume* no-check-for-nan-in-loss-and-grad "
        "check-for-* rerun-mode error-injection-* deterministic-mode check-weight-hash-* test-mode"
    ),
    "the tokenizer, and with it the vocabulary, comes with the shards": (
        "vocab-size padded-vocab-size vocab-file merge-file tokenizer-* make-vocab-size-divisible-by vocab-extra-ids "
        "tiktoken-* legacy-tokenizer trust-remote-code"
    ),
    "shards are read by position; nothing here to tune": (
        "num-workers no-mmap-bin-files data-cache-path num-dataset-builder-threads dataloader-type "
        "object-storage-cache-path mid-level-dataset-surplus no-create-attention-mask-in-dataloader data-impl "
        "dataloader-* reset-position-ids reset-attention-mask allow-ambiguous-pad-tokens data-efficiency-*"
    ),
    "positions are rotary and have no table": "max-position-embeddings no-position-embedding",
    "routers always compute in fp32": "moe-router-dtype attention-softmax-in-fp32 no-attention-softmax-in-fp32",
    "capacity is one buffer here, padded or not": "moe-pad-expert-input-to-capacity",
    "norms, rotations and their sums are stored as such": "rotary-interleaved no-rotary-interleaved",
    "deepspeed's own switch; its file is read when it is given as FILE": "deepspeed deepspeed-config",
}

# What a run here would do otherwise, and what to do about it.
UNSUPPORTED = {
    "there is no model, pipeline or context parallelism here: shard the data parallel ranks (parallel.data), spread "
    "experts (parallel.ep), and take --recompute where memory is short": (
        "tensor-model-parallel-size pipeline-model-parallel-* model-parallel-size context-parallel-size "
        "sequence-parallel expert-tensor-parallel-size num-layers-per-virtual-pipeline-stage "
        "num-virtual-stages-per-pipeline-rank microbatch-group-size-per-virtual-pipeline-stage cp-comm-type "
        "hierarchical-context-parallel-sizes decoder-first-* decoder-last-* account-for-* "
        "enable-expert-tensor-parallelism ds-sequence-parallel-size use-ring-exchange-p2p "
        "no-scatter-gather-tensors-in-pipeline standalone-embedding-stage moe-ep-*"
    ),
    "data comes as shards: shards import PREFIX --output FOLDER --source NAME --tokenizer FILE, then a mixture of "
    "weights (docs/mixtures.md)": (
        "data-path train-data-path valid-data-path test-data-path data-args-path per-split-data-args-path mock-data"
    ),
    "held-out documents are set aside when shards are written (valid_fraction)": "split full-validation",
    "where a run lies is given when it starts: --output": "save",
    "weights come in from Hugging Face: convert the checkpoint with Megatron-Bridge, then --init-from FOLDER": (
        "load pretrained-checkpoint ckpt-step moe-use-upcycling moe-upcycling-granularity"
    ),
    "batches double here, over a share of the run: batch.ramp_from and batch.ramp_share": (
        "rampup-batch-size decrease-batch-size-if-needed"
    ),
    "there is no second prediction per position here": "mtp-*",
    "norms, activations and positions are RMSNorm, SwiGLU and rotary ones here": (
        "squared-relu quick-geglu openai-gelu apply-layernorm-1p apply-residual-connection-post-layernorm "
        "activation-func-clamp-value glu-linear-offset relative-attention-* rotary-percent use-rope-scaling "
        "rope-scaling-factor rotary-seq-len-interpolation-factor no-rope-freq mrope-section qk-l2-norm softmax-type "
        "onnx-safe bert-no-binary-head add-qkv-bias attention-output-gate"
    ),
    "tokens are dropped by weight, least first; none at random or by place": (
        "moe-token-drop-policy use-rts moe-input-jitter-eps noisy-gate-policy moe-apply-probs-on-input "
        "moe-router-force-load-balancing moe-router-force-biased moe-expert-capacity-pad moe-top2-2nd-expert-sampling"
    ),
    "an expert's smallest capacity is 4 here, DeepSpeed's default": "moe-min-capacity",
    "weights stay in fp32, their products alone are in low precision": (
        "fp8-* no-fp8-* first-last-layers-bf16 num-layers-at-* fp16-lm-cross-entropy apply-query-key-layer-scaling "
        "fp32-residual-connection use-precision-aware-optimizer main-grads-dtype main-params-dtype exp-avg-dtype "
        "exp-avg-sq-dtype reuse-grad-buf-for-mxfp8-param-ag keep-fp8-transpose-cache fp4-*"
    ),
    "nothing is moved off the GPU here: --recompute, a smaller batch.micro, or more ranks": (
        "optimizer-cpu-offload optimizer-offload-fraction cpu-offload* cpu-optimizer cpu-torch-adam "
        "use-torch-optimizer-for-cpu-offload fine-grained-activation-offloading offload-modules no-pin-* remote-device "
        "moe-paged-*"
    ),
    "Muon's own choices are fixed here (docs/training.md)": "muon-*",
    "a constant weight decay and no second schedule here": (
        "weight-decay-incr-style start-weight-decay end-weight-decay lr-warmup-init decoupled-min-lr lr-decay-samples "
        "lr-warmup-tokens lr-decay-tokens lr-wsd-decay-samples train-tokens warmup iterations-to-skip"
    ),
    "the loss is the mean over learnt tokens; a source's loss mask says which": (
        "calculate-per-token-loss eod-mask-loss sft* loss-on-*"
    ),
    "there is no such training here": (
        "curriculum-learning* random-ltd kd* teacher* compression-training sample-rate mask-prob short-seq-prob "
        "encoder-* decoder-* retriever-* vision-* bert-* ict-* biencoder-* img-* dino-* grpo-* rl-* perform-rl-step "
        "is-hybrid-model hybrid-* mamba-* experimental-attention-variant linear-* heterogeneous-* moe-latent-size "
        "inference-* skip-train reset-iteration data-parallel-random-init"
    ),
    "weights begin with a spread of one over the root of their inputs": (
        "init-method-std init-method-xavier-uniform embedding-init-method-std use-cpu-initialization"
    ),
}
