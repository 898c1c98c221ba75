# The training side, on CUDA: only what `trainer` needs, with the versions of constraints.txt. From the repository's root:
#   docker build -f docker/train.Dockerfile -t gristmill-train .
#   docker run --gpus all --ipc host -v /data:/data gristmill-train run --mixture web40_code20 --data /data/shards \
#       --output /data/run
# CUDA's libraries come with torch's wheels; the driver is the machine's, by the NVIDIA container toolkit. The user has
# the number 1000: what is mounted must be writable for it, or give --user.
FROM python:3.11.14-slim-bookworm
# gcc: --compile has Triton compile a launcher of each kernel
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 gristmill
WORKDIR /gristmill
COPY constraints.txt ./
COPY packages packages
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir -c constraints.txt packages/base packages/shards packages/trainer
COPY pipelines/training pipelines/training
COPY pipelines/mixtures pipelines/mixtures
ENV PATH=/gristmill/.venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
ENTRYPOINT ["trainer"]
CMD ["--help"]
