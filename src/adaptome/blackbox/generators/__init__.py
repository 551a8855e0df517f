"""What writes further texts of a class: a file, a model on this machine, an endpoint, or the examples themselves put together anew.

generator = get_generator("endpoint", model="gpt-4o-mini")
generator.texts("sports", "news of games and athletes", demonstrations, count=100, seed=0)

@GENERATORS.register("mine")                                       # named under the entry point `adaptome.blackbox.generators`
class Mine(Generator): ...
"""

from adaptome.blackbox.generators.base import GENERATORS, Generator, GeneratorSettings, get_generator

__all__ = ["GENERATORS", "Generator", "GeneratorSettings", "get_generator"]
