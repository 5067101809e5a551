"""Workers: each fits one task beside the shared basis and entrusts the result to the coordinator.

life           join -> fetch -> fit -> outbox -> submit -> receipt -> evaluate on new versions -> leave
tasks, base_model, fit, train, evaluate     what is learned, on what, and how
outbox, cache  what a worker keeps on disk         client     the coordinator, as seen from here
process_host, ray_host               where a life is led
"""
