# docker build -f deploy/docker/backend.Dockerfile -t coati-backend:0.1.0 .
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
COPY --from=build /dist/coati-backend.root/ /
# Its volume; who runs the container gives it to this user.
WORKDIR /var/lib/coati
USER 65532:65532
EXPOSE 3200 4317 4318
ENTRYPOINT ["/usr/bin/coati-backend"]
