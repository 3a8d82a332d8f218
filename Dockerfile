# The demonstration and every command in a container:
#   docker build -t prism-policy .
#   docker run --rm -v "$PWD/runs:/prism/runs" prism-policy quickstart --out runs/quickstart
FROM python:3.11-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc git libc6-dev libegl1 libgl1-mesa-dri libosmesa6 linux-libc-dev make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 prism && mkdir -p /prism/runs && chown -R prism /prism
USER 1000
WORKDIR /prism
COPY --chown=prism . .
RUN make system
ENV PATH=/prism/.venv/bin:$PATH
ENTRYPOINT ["prism"]
CMD ["quickstart", "--out", "runs/quickstart"]
