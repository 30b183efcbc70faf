"""The published figures beside what the released data give: each row with a verdict."""
