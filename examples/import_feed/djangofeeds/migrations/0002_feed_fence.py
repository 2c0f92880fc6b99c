from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("djangofeeds", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="feed",
            name="fence",
            field=models.BigIntegerField(
                default=0, editable=False, help_text="The greatest fence that was written with."
            ),
        ),
    ]
