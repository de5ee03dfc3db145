"""Linear maps stored as tensor-train cores (Oseledets 2011), and the adapter family made of them (FedTT)."""
