"""The models, each on the frame tables -> arch -> towers."""
