# One image for the operator, the state API (the chart sets the command) and Python tasks that use the SDK.
#
#   docker build .                                    packages from PyPI, verified against the hashes in requirements-*.lock
#   make image                                        the same packages from build/wheels, downloaded beforehand; needs no network
ARG BASE=python:3.13-slim

FROM $BASE AS dependencies
ARG PIP_NO_INDEX=
ARG PIP_INDEX_URL=https://pypi.org/simple
ENV PIP_NO_INDEX=$PIP_NO_INDEX PIP_INDEX_URL=$PIP_INDEX_URL PIP_FIND_LINKS=/wheels PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# By default, bytecode contains the time at which its source was installed, so that no two builds are equal.
ENV PYTHONHASHSEED=0 COMPILE="python -m compileall -q --invalidation-mode unchecked-hash"
# COPY needs at least one existing source: LICENSE always exists, and the pattern makes build/wheels optional.
COPY LICENSE build/wheel[s] /wheels/
COPY requirements-build.lock requirements-image.lock /source/
WORKDIR /source
# The build backend is installed outside of the image's environment.
RUN python -m pip install --quiet --require-hashes --no-deps --only-binary :all: --target /backend -r requirements-build.lock \
 && python -m venv --without-pip /opt/reattach \
 && python -m pip --python /opt/reattach/bin/python install --quiet --no-compile --require-hashes --no-deps --only-binary :all: -r requirements-image.lock \
 && $COMPILE /opt/reattach/lib

FROM dependencies AS reattach
COPY pyproject.toml README.md LICENSE /source/
COPY operator /source/operator
RUN PYTHONPATH=/backend python -m pip --python /opt/reattach/bin/python install --quiet --no-compile --no-build-isolation --no-deps --prefix /reattach . \
 && $COMPILE /reattach/lib

FROM $BASE
# Remove pip, because nothing is installed in a running container.
RUN rm -rf /usr/bin/pip* /usr/local/bin/pip* /usr/lib/python3/dist-packages/pip /usr/local/lib/python3*/site-packages/pip
# Two layers, so that the large one with the dependencies does not change with the code of Reattach.
COPY --from=dependencies /opt/reattach /opt/reattach
COPY --from=reattach /reattach /opt/reattach
ENV PATH=/opt/reattach/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
CMD ["python"]
