# What contributors do most; CONTRIBUTING.md explains it.
.PHONY: test quick format tables

test:
	pytest

quick:
	pytest -m quick

format:
	ruff format .
	ruff check --fix .
	python tools/copies.py

tables:
	python tools/report.py --readme
	python tools/tables.py
