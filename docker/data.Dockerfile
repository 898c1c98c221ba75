# The data side: filtering, grading with vLLM on CPU, packing, publishing. Build from the repository's root:
#   docker build -f docker/data.Dockerfile -t gristmill-data .
FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /gristmill
COPY dev pyproject.toml constraints.txt ./
COPY packages packages
COPY pipelines pipelines
RUN ./dev setup
ENV PATH=/gristmill/.venv/bin:$PATH
ENTRYPOINT ["python"]
CMD ["pipelines/filter_olmo3.py", "--help"]
