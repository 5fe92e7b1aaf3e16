from .client.base import Client as Client
from .client.base import PooledClient as PooledClient
from .client.hash import HashClient as HashClient
