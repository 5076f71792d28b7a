"""What the appliance knows: plain frozen dataclasses and tables, no outside thing."""
