"""A guard for Django's models: a column that has the greatest fence, and `save(fence=...)`."""

# Django has no types of its own, and what is inferred from its sources is wrong of models and of `atomic`.
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIncompatibleMethodOverride=false
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, models, router, transaction

from ._number import Fenced, Number, number_of

_NOT_GIVEN: Any = object()


class FencedModel(models.Model):  # type: ignore[misc]  # Django has no types of its own
    """A model whose rows refuse a holder that comes too late.

    `save(fence=lease.fence)` writes if the row has seen no later fence, decided in the UPDATE itself, and raises
    `StaleFence` otherwise. `save()` writes without a guard, and leaves the fence of the row as it is. What goes past
    `save`, such as `QuerySet.update` or `bulk_update`, is not guarded.
    """

    fence = models.BigIntegerField(default=0, editable=False, help_text="The greatest fence that was written with.")

    class Meta:
        abstract = True

    def save(
        self,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
        *,
        fence: int | Fenced = _NOT_GIVEN,
    ) -> None:
        """Django's `save`. With a `fence`, raises `StaleFence` if a later one was seen, and nothing is written then.

        A transaction around it can go on after a `StaleFence`. `post_save` is sent only for what was written.
        `fence=None`, of a lease that has none, is a `ConfigurationError`.
        """
        given: dict[str, Any] = {"force_insert": force_insert, "force_update": force_update, "using": using}
        given["update_fields"] = update_fields = None if update_fields is None else frozenset(update_fields)
        if fence is _NOT_GIVEN:
            super().save(**given)
            return
        number = number_of(fence)
        if update_fields is not None and not update_fields:  # which Django takes for "nothing to save"
            return
        given["using"] = using or router.db_for_write(type(self), instance=self)
        self._save_fenced(number, given)

    save.alters_data = True  # type: ignore[attr-defined]  # no template may call it

    async def asave(self, *args: Any, **kwargs: Any) -> None:
        """`save` in async code."""
        await sync_to_async(self.save)(*args, **kwargs)

    asave.alters_data = True  # type: ignore[attr-defined]  # no template may call it

    def _save_fenced(self, number: Number, given: dict[str, Any]) -> None:
        before, pk = self.__dict__.get("fence"), self.pk  # not the attribute, which may be deferred
        self.fence = number.value
        self._guard = number
        try:
            try:
                self._save_alone(given)
            except IntegrityError:
                # Somebody may have inserted the row after our UPDATE found none: then it is there to be updated.
                if pk is None or given["force_insert"] or not self._is_there(given["using"]):
                    raise
                self._save_alone(given)
        except BaseException:
            del self.fence  # read again when it is asked for
            if before is not None:
                self.fence = before
            raise
        finally:
            del self._guard

    def _save_alone(self, given: dict[str, Any]) -> None:
        with transaction.atomic(using=given["using"]):  # a savepoint: what fails here spoils nothing around it
            super().save(**given)

    def _is_there(self, using: str) -> bool:
        return bool(type(self)._base_manager.using(using).filter(pk=self.pk).exists())

    def _do_update(self, base_qs: Any, using: Any, pk_val: Any, values: list[Any], *rest: Any, **more: Any) -> Any:
        """Django's own hook for the UPDATE of one table: here the guard becomes part of its WHERE."""
        field = self._meta.get_field("fence")
        if field not in base_qs.model._meta.local_concrete_fields:  # the table of a model below or above ours
            return super()._do_update(base_qs, using, pk_val, values, *rest, **more)
        number: Number | None = getattr(self, "_guard", None)
        others = [each for each in values if each[0] is not field]
        if number is None:
            # `fence` is among the values of each save(), as it was when the instance was read: it must not go back.
            named = more.get("update_fields", rest[0] if rest else None) or ()
            return super()._do_update(base_qs, using, pk_val, values if "fence" in named else others, *rest, **more)
        values = [*others, (field, None, number.value)]
        seen: int | None = None
        for _ in range(2):
            guarded = base_qs.filter(fence__lte=number.value)
            updated = super()._do_update(guarded, using, pk_val, values, *rest, **more)
            if updated:
                return updated
            seen = base_qs.filter(pk=pk_val).values_list("fence", flat=True).first()
            if seen is None:
                return updated
            if seen > number.value:
                break
        raise number.stale(f"{self._meta.label} {pk_val!r}", seen)
