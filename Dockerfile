# The container of all launchers. Variants by build argument:
#   docker build -t rethink_tf .                             NVIDIA GPUs, and CPUs
#   docker build -t rethink_tf:tpu --build-arg VARIANT=tpu . TPUs
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ARG VARIANT=gpu

WORKDIR /rethink_tf
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY rethink_tf rethink_tf
COPY gin_configs gin_configs
COPY launch launch

# tensorflow-tpu takes the place of tensorflow, which other packages ask for: both write the same
# folder, so tensorflow goes and what it took along comes back.
RUN case "$VARIANT" in \
      gpu) pip install -e '.[gpu]' ;; \
      tpu) pip install -e '.[tpu]' && pip uninstall -y tensorflow && \
           pip install --no-deps --force-reinstall "tensorflow-tpu==$(pip list --format=freeze \
             | sed -n 's/^tensorflow-tpu==//p')" ;; \
      *) echo "VARIANT=$VARIANT: gpu or tpu" >&2; exit 1 ;; \
    esac

# exec form: signals reach Python, which saves before it ends.
CMD ["python", "-m", "rethink_tf.train", "--help"]
