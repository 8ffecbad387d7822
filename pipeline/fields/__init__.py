"""Fields: functions of coordinates with parameters, shared or one set a sample."""
