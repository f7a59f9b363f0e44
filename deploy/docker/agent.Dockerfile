# docker build -f deploy/docker/agent.Dockerfile -t coati-agent:0.1.0 .
# What `cargo xtask dist` makes without Docker, with Docker: the same files in the same places.

# Debian has an eBPF compiler with its library's sources, and the matching LLVM; cargo xtask installs both, and the
# toolchain is the one that rust-toolchain.toml names.
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates curl git \
 && rm -rf /var/lib/apt/lists/*
RUN curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none
ENV PATH=/root/.cargo/bin:$PATH
WORKDIR /src
COPY . .
RUN cargo xtask dist --roots --out /dist

FROM scratch
COPY --from=build /dist/coati-agent.root/ /
# Root, with the capabilities BPF, PERFMON, SYS_PTRACE and DAC_READ_SEARCH only, in the node's process namespace:
#   docker run --pid=host --cap-drop=ALL --cap-add={BPF,PERFMON,SYS_PTRACE,DAC_READ_SEARCH} --read-only \
#     --security-opt=apparmor=unconfined -v /sys/kernel/tracing:/sys/kernel/tracing:ro coati-agent:0.1.0
USER 0:0
EXPOSE 9400
ENTRYPOINT ["/usr/bin/coati-agent"]
