"""Made from `proto/open_inference.proto` by `make proto`; a test makes it again and compares."""
