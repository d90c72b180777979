"""Telling people: `notices` decides what is told, `outbox` keeps it until it arrived, `webhook`
delivers it. `journal` writes the changes of incidents to the journal of the node."""
