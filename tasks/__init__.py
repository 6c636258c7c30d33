"""One thin task for each engine verb: settings in, result out, events to progress, outcome to the catalog."""
