# Everything here needs Go, bash and the GNU core utilities (and grep); the race detector also needs a C compiler.
# `make` alone prints what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# What `make check` runs, in this order.
CHECKS := test race lint tidy-check

# The packages with goroutines that share memory. The detector makes tests five to ten times slower; the others would
# learn nothing from it. Those whose tests are long run in their -short form: deadletter, pgstore.
RACE := . ./command/... ./feed/... ./process/... ./projection/... ./localstore/... ./httpapi/... ./lease/... ./transfer/... ./notify/... ./smtp/... ./payment/... ./sim/gateway/...

# The linters have a module of their own: their two hundred dependencies are not to be ours.
LINT := go tool -modfile=tools/lint.mod golangci-lint

# To be set on the command line: make fuzz FUZZTIME=5m; make bench BENCH=Append PKG=./localstore
FUZZTIME ?= 10s
SOAKTIME ?= 10m
BENCH ?= .
PKG ?= ./...

.PHONY: help build test race lint tidy-check check soak cluster bench fuzz fmt

help: ## print this list
	@while IFS= read -r line; do \
		if [[ $$line =~ ^([a-z-]+):[^#]*\#\#\ (.*)$$ ]]; then \
			printf '  make %-12s %s\n' "$${BASH_REMATCH[1]}" "$${BASH_REMATCH[2]}"; \
		fi; \
	done < $(firstword $(MAKEFILE_LIST))

build: ## build every package, and the binary as bin/millrace
	go build ./...
	go build -trimpath -o bin/millrace ./cmd/millrace

test: ## run all tests
	go test ./...

race: ## run the tests of the engine under the race detector
	go test -race $(RACE)
	go test -race -short ./deadletter/... ./pgstore/...

lint: ## run the linters; the first run builds them, in about two minutes
	$(LINT) config verify
	$(LINT) run ./...

tidy-check: ## say whether go.mod and go.sum are what the code needs
	go mod tidy -diff

check: ## run test, race, lint and tidy-check: exactly what CI runs
	@for step in $(CHECKS); do \
		printf '\n== %s\n' "$$step"; \
		start=$$SECONDS; \
		$(MAKE) "$$step" || { printf '== %s failed after %d s\n' "$$step" $$((SECONDS - start)); exit 1; }; \
		printf '== %s: %d s\n' "$$step" $$((SECONDS - start)); \
	done

soak: ## run the tests named TestSoak... for SOAKTIME each (10m)
	MILLRACE_SOAK=$(SOAKTIME) go test -count=1 -timeout=0 -p=1 -v -run='^TestSoak' $(PKG)

cluster: ## run the tests of several nodes on PostgreSQL in their long form
	MILLRACE_CLUSTER=1 go test -count=1 -timeout=90m -v -run='^TestCluster' ./cmd/millrace

bench: ## run the benchmarks that match BENCH (.) in PKG (./...)
	go test -run='^$$' -bench='$(BENCH)' -benchmem -p=1 $(PKG)

fuzz: ## run every fuzz target for FUZZTIME (10s)
	@found=0; \
	while IFS=: read -r -u 3 file line; do \
		[[ $$line =~ ^func\ (Fuzz[A-Za-z0-9_]*)\( ]] || continue; \
		found=$$((found + 1)); \
		printf '\n== %s in %s\n' "$${BASH_REMATCH[1]}" "$$(dirname "$$file")"; \
		go test -run='^$$' -fuzz="^$${BASH_REMATCH[1]}\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=5s "$$(dirname "$$file")"; \
	done 3< <(grep -r --include='*_test.go' --exclude-dir='.?*' '^func Fuzz' .); \
	[ "$$found" -gt 0 ] || { echo 'no fuzz target found' >&2; exit 1; }

fmt: ## format the code
	gofmt -s -w .
