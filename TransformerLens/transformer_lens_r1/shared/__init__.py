"""What the stages share beside models: arguments, errors, files, the Hub, data sets, and which run is which."""
