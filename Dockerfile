# The API and the worker, in one image. `make run` brings its own Postgres and Valkey; this image has neither.

# What the dashboard's pages take from npm; pinned by hash in package-lock.json.
FROM node:22-slim AS parts
WORKDIR /parts
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-fund --no-audit

FROM python:3.13-slim AS build
WORKDIR /build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON=/usr/local/bin/python3 UV_PYTHON_DOWNLOADS=never

# What builds is in a lock too: pip checks the hashes of uv and setuptools, uv those of all that is installed.
COPY requirements.lock requirements-dev.lock ./
RUN sed -n -E '/^(uv|setuptools)==/,/[^\\]$/p' requirements-dev.lock > tools.lock \
 && pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --require-hashes -r tools.lock \
 && uv venv /opt/secureblogs \
 && uv pip sync --python /opt/secureblogs/bin/python --require-hashes --only-binary :all: requirements.lock

COPY pyproject.toml README.md LICENSE piccolo_conf.py ./
COPY server server
COPY tasks tasks
COPY client client
COPY piccolo_migrations piccolo_migrations
COPY --from=parts /parts/node_modules/htmx.org/dist/htmx.min.js server/dashboard/static/parts/
COPY --from=parts /parts/node_modules/uplot/dist/uPlot.iife.min.js /parts/node_modules/uplot/dist/uPlot.min.css \
    server/dashboard/static/parts/
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
 && uv pip install --python /opt/secureblogs/bin/python --no-deps dist/*.whl

FROM python:3.13-slim
RUN groupadd --gid 10001 secureblogs \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin secureblogs \
 && install --directory --owner 10001 --group 10001 --mode 0700 /files
COPY --from=build /opt/secureblogs /opt/secureblogs
ENV PATH=/opt/secureblogs/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
CMD ["secureblogs", "api"]
