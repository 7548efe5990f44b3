"""Interfaces of other services, each of them one bandit: their clients work by another address. They are thin: what is asked is
decided and learned by the functions of the native routes.
"""
