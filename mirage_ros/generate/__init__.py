"""Many rollouts into one dataset: plans, policies, workers, and what holds them together.

    from mirage_ros.generate.run import Job, generate
    report = generate(Job(policies=("wander",)), 8, "out/data", workers=2)
"""
