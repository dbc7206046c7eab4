# The image of the server and, by another command, of the page. Build it with `make image`.
#
#   docker run --rm -p 8000:8000 deltabert
#   docker run --rm -p 8501:8501 -e FRONTEND_API_URL=http://SERVER:8000 \
#       -e HEALTH_URL=http://127.0.0.1:8501/_stcore/health deltabert \
#       streamlit run frontend/main.py --server.address 0.0.0.0
#
# PyTorch's CPU build by default; `--build-arg TORCH=cu130` takes the one for CUDA 13.0.
# Your own deltas: `-v "$PWD/runs/deltas:/deltas:ro" -e DELTABERT_DELTAS=/deltas`.
# Compiled kernels that outlive the container: `-v deltabert-cache:/cache`.

# A name can move to another image; `--build-arg BASE=python:3.11-slim@sha256:...` is one for ever.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/deltabert
ENV PATH=/opt/deltabert/bin:$PATH
WORKDIR /src
COPY requirements.lock requirements-build.lock constraints.txt ./
# Only wheels: a source distribution is built by programs that no lock names.
RUN pip install --require-hashes --only-binary :all: --no-deps -r requirements.lock
# After the others, so that PyTorch's index gives nothing but PyTorch and CUDA's libraries.
RUN pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/${TORCH}
RUN python -m venv builder
RUN builder/bin/pip install --require-hashes --only-binary :all: --no-deps -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY audit audit
COPY deltas deltas
COPY deltabert deltabert
COPY frontend frontend
COPY training training
RUN builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist .
RUN pip install --no-deps dist/deltabert-*.whl && pip check

FROM ${BASE}
RUN useradd --uid 10001 --create-home deltabert && mkdir /cache && chown 10001 /cache
COPY --from=build /opt/deltabert /opt/deltabert
ENV PATH=/opt/deltabert/bin:$PATH PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false XDG_CACHE_HOME=/cache
# Not the checkout: what runs is the installed wheel, and it must be complete.
WORKDIR /home/deltabert
# A name for the page's installed folder, so that the README's command works here too.
RUN ln -s "$(python -c 'import frontend; print(frontend.__path__[0])')" frontend
USER 10001
ENV DELTABERT_HOST=0.0.0.0 HEALTH_URL=http://127.0.0.1:8000/health/ready
EXPOSE 8000 8501
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['HEALTH_URL'], timeout=8)"]
CMD ["python", "-m", "app"]
