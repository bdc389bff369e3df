"""Labels buyer mail with TF-IDF and linear models, and trains them.

``document`` what goes in and comes out · ``normalize`` comparable words ·
``vectorize`` counted terms · ``cues`` concepts that languages share ·
``dataset`` labelled messages and their splits · ``train`` · ``evaluate`` ·
``report`` plots · ``artifact`` signed model folders · ``inference`` labelling
without scikit-learn, with ``vocabulary`` terms to numbers, ``scoring`` (plain
Python, ``scoring_arrays`` numpy) and ``memo`` · ``shipped`` the model that
comes along · ``starter`` the corpus it was made from.
"""
