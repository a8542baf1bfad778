module model-delivery/benchmarks/fetch/server

go 1.24
