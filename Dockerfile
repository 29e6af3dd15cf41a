# A layer for the dependencies, one for the daemon; of both only the binary is kept.

FROM rust:1.95-bookworm AS build
WORKDIR /build

# This layer is built again only when Cargo.toml or Cargo.lock changes. librdkafka and OpenSSL are
# compiled here with the gcc, g++, make and perl of the image.
COPY Cargo.toml Cargo.lock ./
# Cargo.lock has this package of the tests too: Cargo wants to see it, and builds nothing of it.
COPY tests/support/Cargo.toml tests/support/
RUN mkdir src tests/support/src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs tests/support/src/lib.rs \
    && cargo build --locked --release --no-default-features

# The defaults are built into the program.
COPY config/default.toml config/
COPY src src
# Cargo goes by times, and these files may be older than their stand-ins above. Names of functions
# stay in the binary, for backtraces.
RUN touch src/main.rs src/lib.rs \
    && cargo build --locked --release --no-default-features \
    && strip --strip-debug -o /crm-event-processors target/release/crm-event-processors


FROM debian:bookworm-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /crm-event-processors /usr/local/bin/
# Settings may be mounted as config/local.toml; there is nothing here to write.
WORKDIR /etc/crm-event-processors
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/crm-event-processors"]
CMD ["run"]
