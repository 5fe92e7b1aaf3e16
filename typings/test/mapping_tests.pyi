import unittest
from typing import Any

class BasicTestMappingProtocol(unittest.TestCase):
    type2test: Any

class TestMappingProtocol(BasicTestMappingProtocol): ...
class TestHashMappingProtocol(TestMappingProtocol): ...
