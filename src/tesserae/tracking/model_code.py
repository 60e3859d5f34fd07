"""What MLflow runs to make a recorded model: it is kept beside the weights."""

from mlflow.models import set_model

from tesserae.tracking.model import Network

set_model(Network())
