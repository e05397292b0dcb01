"""Engines in processes of their own, one for each device, behind one door. Knows no text and no HTTP.

gateway -> Balancer -> RemoteDriver  = socket =  process -> Driver -> Engine
                    -> RemoteDriver  = socket =  process -> Driver -> Engine
"""
