"""Pure decisions: what was observed goes in, a plan comes out. No client, no clock, no framework, nothing async."""
