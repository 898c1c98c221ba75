# The data side: filtering, grading with vLLM on CPU, packing, publishing. Build from the repository's root:
#   docker build -f docker/data.Dockerfile -t gristmill-data .
FROM python:3.11.14-slim-bookworm
# rsync: `ray up` copies files with it
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libnuma1 rsync \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 gristmill
WORKDIR /gristmill
COPY dev pyproject.toml constraints.txt ./
COPY packages packages
COPY pipelines pipelines
RUN ./dev setup \
    && rm -rf ~/.cache
# Compiled kernels are kept where the user may write
ENV PATH=/gristmill/.venv/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba
USER 1000
ENTRYPOINT ["python"]
CMD ["pipelines/filter_olmo3.py", "--help"]
