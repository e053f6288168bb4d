"""How bytes move: routes, copies between cards, the bounce ring through the host, kernels, collectives."""
