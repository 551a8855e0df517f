"""Knowledge graphs: triples, logical queries over them, and the answers that follow.

graph       Vocabulary and Graph: names, triples, and what is reached from where
query       a query as a tree, and the 14 structures that the field asks
text        a query as a line that can be read: "? : works_for(?, acme) and not lives_in(?, york)"
sampling    queries drawn from a graph, with answers that follow from what is known (easy) and those that do not (hard)
family      a made-up town: people, kinship, homes, employers
betae       BetaE's data sets, converted
"""

from adaptome.graphs.graph import Graph, Vocabulary
from adaptome.graphs.query import STRUCTURES, Anchor, And, Not, Or, Project, Query

__all__ = ["STRUCTURES", "Anchor", "And", "Graph", "Not", "Or", "Project", "Query", "Vocabulary"]
