import os

# gRPC reads this when it is imported, and would else write its own lines on standard error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
