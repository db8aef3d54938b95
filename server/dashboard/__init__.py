"""A dashboard for arq, which any Litestar application can mount and any arq worker can feed.

    # the worker process
    worker = Worker(functions=[send_mail], redis_pool=redis)
    record(worker)
    worker.run()

    # the application
    Litestar([dashboard_router(redis=redis, guards=[only_operators])])

The worker's side is `recorder`, the application's side `router`; `reader` and `actions` are what both the router and
a command line are made of. Nothing here knows more than arq, Redis, Litestar and msgspec.
"""
