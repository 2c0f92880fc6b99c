"""Signals of the locks of tasks. They are sent where it happens: of a prefork worker in the child, `lock_freed` in the
main process.

All receivers take `sender` (the task's name) and `**facts`: `name` of the lock, `task_id`, and what is said below.
"""

from celery.utils.dispatch import Signal

lock_acquired = Signal(name="lock_acquired")
"""A task has its lock. `fence`, `waited` (seconds)."""
lock_busy = Signal(name="lock_busy")
"""A task found its lock held. `holder`, and `outcome`: "skipped", "requeued", "queued", "raised", "redelivered"."""
lock_released = Signal(name="lock_released")
"""A task ended, and gave its lock back. `held_for` (seconds), and `stays_for`: 0, or the seconds for which the lock
stands on, by `min_hold` or `hold_on_retry`."""
lock_lost = Signal(name="lock_lost")
"""The lock ended while its task ran. `reason`."""
lock_freed = Signal(name="lock_freed")
"""The worker freed the lock of a task whose process is dead. `reason`, `pid`."""
duplicate_enqueue = Signal(name="duplicate_enqueue")
"""A call was not enqueued, since one with the same key is. `existing`: its task id, or `None`."""
backend_error = Signal(name="backend_error")
"""The store gave no usable answer. `error`, and `outcome`: "requeued", "raised", "run" or "kept"."""
