"""The steps of one study: receive, assemble, analyse, report, deliver."""
