# Palimpsest on a CPU. `docker build -t palimpsest .`; the demo: `docker run --rm --user "$(id -u)" -v "$PWD:/work" palimpsest`.
FROM python:3.11-slim
# A CPU build of torch, before anything that would bring another one.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /opt/palimpsest
COPY constraints.txt ./
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep -i '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt ".[gguf,serve]" && rm -rf /opt/palimpsest/src
RUN useradd --create-home palimpsest && mkdir /work && chown palimpsest /work
USER palimpsest
ENV HOME=/tmp OMP_NUM_THREADS=1 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /work
ENTRYPOINT ["palimpsest"]
CMD ["demo", "--out", "demo"]
