# The training side, on CUDA: only what `trainer` needs, with the versions of constraints.txt. From the repository's root:
#   docker build -f docker/train.Dockerfile -t gristmill-train .
#   docker run --gpus all -v /data:/data gristmill-train run --mixture web40_code20 --data /data/shards --output /data/run
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /gristmill
COPY constraints.txt ./
COPY packages packages
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir -c constraints.txt packages/base packages/shards packages/trainer
ENV PATH=/gristmill/.venv/bin:$PATH
ENTRYPOINT ["trainer"]
CMD ["--help"]
