"""Figures of this server, each beside a limit that is measured in the same run. Ratios count: machines differ."""
