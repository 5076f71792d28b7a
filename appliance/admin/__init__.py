"""The status site of one appliance."""
