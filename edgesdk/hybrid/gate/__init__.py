"""Before a draft: should the device try at all?"""
